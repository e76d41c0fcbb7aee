"""The manifests, as package data: `kubectl apply -k` takes them, `smallbench k8s` starts from them."""
