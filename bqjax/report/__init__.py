"""Tables, pictures and one self-contained HTML page about a compression."""
