"""Reference networks in Flax NNX, and what belongs to their data. Flax is optional: import the module of the network.

==================  ======================================================================================
module              what it has
==================  ======================================================================================
``digits``          a small convolutional network for images of 8 x 8
``mnist``           convolutional networks for images of 28 x 28
``resnet``          ResNets for CIFAR, with PyTorch's weights
``vgg``             VGG16 and VGG19, with weights of torchvision and Keras
``inception``       InceptionV1 (GoogLeNet, with torchvision's weights) and InceptionV2
``mobilenet``       MobileNetV1 and MobileNetV2
``squeezenet``      SqueezeNet 1.1, with Caffe's weights
``depthwise``       depthwise convolution, fast on CPUs too
``spc``             the convolutional network for Speech Commands, with TensorFlow's weights
``deep_speech``     DeepSpeech 1 and 2
``transformer``     transformers for text, images and spoken words, with checkpoints of Hugging Face
``recurrent``       GRU and LSTM over padded sequences
``audio``           log-mel spectrograms, mel-frequency cepstral coefficients, SpecAugment
``ctc``             connectionist temporal classification: losses and scores
``transcripts``     alphabets, beam search, word and character error rates
==================  ======================================================================================
"""

__all__: list[str] = []
