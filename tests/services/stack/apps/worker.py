"""Does what is in the queue: an order is done when PostgreSQL says so, and only then is it taken out."""

import sys
import time

import pika
import psycopg2
import shop


def work():
    database, queue = shop.database(), shop.queue()
    queue.basic_qos(prefetch_count=50)
    print("waiting for orders")
    for method, _, body in queue.consume(shop.QUEUE):
        with database, database.cursor() as cursor:
            cursor.execute("update orders set done = true where id = %s", (body.decode(),))
        queue.basic_ack(method.delivery_tag)


while True:
    try:
        work()
    except (OSError, pika.exceptions.AMQPError, psycopg2.Error) as error:
        print(f"{type(error).__name__}: {error}; again in a moment", file=sys.stderr)
        time.sleep(0.5)
