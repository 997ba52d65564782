from frostbit_runtime.kernels import threads

threads.WORTH = 0  # however small a case, its work is split among as many threads as it asks for
