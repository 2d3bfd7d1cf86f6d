"""The adapter to MLflow: runs, live metrics, models, the registry. Nothing else in the project imports mlflow."""
