"""How many different users, per minute to year, straight from Kafka. The core: it never imports dagster."""

__version__ = "0.1.0"
