"""MedSyn: from chest CTs and radiology reports to a trained text-to-CT model and the tables of the paper.

Xu et al., "MedSyn: Text-guided Anatomy-aware Synthesis of High-Fidelity 3D CT Images", IEEE TMI 2024.
"""

__version__ = "0.1.0"
