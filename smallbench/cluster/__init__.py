"""A cluster: manifests from a recipe and a few values, and what kubectl says of them."""
