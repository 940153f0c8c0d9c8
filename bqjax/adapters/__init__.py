"""Parameters of networks from elsewhere as plain pytrees, and back. Import the module of the library you use."""

__all__: list[str] = []
