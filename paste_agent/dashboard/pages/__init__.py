"""The pages, a function each: a View in, a Page out."""
