"""Programs that train networks for the experiments in ``configs/``; the library in ``bqjax`` does not need them."""
