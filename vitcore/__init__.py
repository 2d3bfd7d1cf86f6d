"""A PyTorch library to pretrain vision transformers; it knows no Prefect, no Ray and no MLflow."""

__version__ = "0.1.0"
