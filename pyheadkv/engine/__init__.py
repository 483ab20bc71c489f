"""The model that runs: where its file comes from, the native library and its C ABI, llama-cpp-python."""
