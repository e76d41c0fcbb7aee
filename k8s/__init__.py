"""The manifests, as package data: what `kubectl apply -k` takes and `smallbench k8s` starts from."""
