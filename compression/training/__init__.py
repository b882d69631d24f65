"""Training: the recipe and its step, the loop, the run's folder, distillation, quantization-aware training.

May import everything but options and the scripts.
"""
