"""What the Python parts of the shop have in common: their connections, from the environment."""

import os
from pathlib import Path

import pika
import psycopg2
import redis

QUEUE = "orders"


def secret(name):
    return Path("/run/secrets", name).read_text()


def database():
    return psycopg2.connect(
        host=os.environ["POSTGRES_HOST"],
        port=os.environ["POSTGRES_PORT"],
        dbname="shop",
        user="shop",
        password=secret("postgres_password"),
        connect_timeout=3,
    )


def counters():
    return redis.Redis(os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"]), password=secret("redis_password"), socket_timeout=3)


def queue():
    """A channel that confirms what it has taken."""
    who = pika.PlainCredentials("shop", secret("rabbitmq_password"))
    where = pika.ConnectionParameters(os.environ["RABBITMQ_HOST"], int(os.environ["RABBITMQ_PORT"]), credentials=who, socket_timeout=3)
    channel = pika.BlockingConnection(where).channel()
    channel.queue_declare(QUEUE, durable=True)
    channel.confirm_delivery()
    return channel
