"""Methods that train on, behind the interface of those that do not."""
