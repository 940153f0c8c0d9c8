"""GWK in the Optax loop that you have.

Gradient-weighted k-means stores blocks of weights as indices into a codebook, down to one bit a weight and below. Five lines,
numbered here, turn a training loop into one that clusters after each epoch; loop, loss and optimiser stay yours. Run it with

    python examples/gwk_in_optax.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from bqjax import GWKConfig, Rule, bits_per_weight, decode, gwk_cluster, load, save
from bqjax.adapters.optax import gradient_stats, record_gradients
from bqjax.kmeans import quantize_codebooks

# ## The loop that you have
#
# A network of two dense layers in plain JAX: any pytree of parameters and any loss will do.

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
test = slice(1300, None)  # the first 1,300 are trained on


def logits(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def dense(key, n, m):
    return {"kernel": jax.random.normal(key, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}


keys = jax.random.split(jax.random.key(0))
params = {"hidden": dense(keys[0], 64, 256), "head": dense(keys[1], 256, 10)}

# ## The five lines
#
# 1. `record_gradients()` goes first in the chain. It lets updates pass unchanged and keeps running means of their sizes, which say
#    what each block of weights counts.
# 2. Rules name the leaves: 16 entries of 4 weights for the large layer, which is one bit a weight, 64 single values for the head.
#    Biases have one dimension and are left as they are.
# 3. After each epoch `gwk_cluster` finds codebook and indices, from where the last epoch's stood (`start=`).
# 4. `decode` puts the reconstruction in place of the weights, and training goes on from it.
# 5. At the end codebooks get 8 bits a number for the file.

optimiser = optax.chain(record_gradients(), optax.adam(2e-3))  # 1
rules = [Rule("hidden/kernel", GWKConfig(bits=4, pw=4)), Rule("head/kernel", GWKConfig(bits=6, pw=1))]  # 2
state, tree = optimiser.init(params), None


@jax.jit
def step(params, state, x, y):
    updates, state = optimiser.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


def accuracy(params):
    return float((logits(params, images[test]).argmax(1) == labels[test]).mean())


print("epoch  trained  clustered")
for epoch in range(12):
    for rows in np.random.default_rng(epoch).permutation(1300)[:1280].reshape(40, 32):
        params, state = step(params, state, images[rows], labels[rows])
    trained = accuracy(params)
    tree, info = gwk_cluster(params, gradient_stats(state).mean, rules, key=jax.random.key(epoch), start=tree)  # 3
    params = decode(tree)  # 4
    if epoch % 3 == 2:
        print(f"{epoch + 1:>5}  {trained:7.2%}  {accuracy(params):9.2%}")

# ## The file
#
# Indices are entropy-coded; biases stay in float32.

path = Path("out/gwk_in_optax.bq.safetensors")
path.parent.mkdir(exist_ok=True)
save(path, quantize_codebooks(tree), force=True)  # 5
floats = sum(4 * x.size for x in jax.tree.leaves(params))
print(f"{bits_per_weight(tree):.2f} bits a weight of both kernels by the paper's formula")
print(f"{path}: {path.stat().st_size:,} bytes of {floats:,}, {accuracy(decode(load(path))):.2%} decoded from the file")

# ## What it prints
#
#     epoch  trained  clustered
#         3   88.73%     86.12%
#         6   90.34%     88.53%
#         9   90.54%     89.13%
#        12   91.35%     89.94%
#     1.73 bits a weight of both kernels by the paper's formula
#     out/gwk_in_optax.bq.safetensors: 5,633 bytes of 76,840, 89.94% decoded from the file
