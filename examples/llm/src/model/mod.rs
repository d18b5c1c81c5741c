//! The model: configuration and weights from a GGUF file, its forward pass, its cache.
