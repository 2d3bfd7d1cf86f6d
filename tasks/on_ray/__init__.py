"""The adapter to Ray: the only package that imports it. Runs in workers too, so it never imports Prefect."""
