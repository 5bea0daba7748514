"""What was recommended, as arguments of the engines that serve: vLLM, SGLang, TensorRT-LLM, llama.cpp, transformers.

Each engine's module names the version and the page that its arguments were taken from. Nothing here runs an engine, or
says that an engine is lossless.
"""
