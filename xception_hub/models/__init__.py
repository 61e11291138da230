"""A timm model by name, its class names, its classifier: what training and inference both stand on."""
