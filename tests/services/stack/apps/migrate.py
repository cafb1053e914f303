"""Makes the tables, once."""

import shop

with shop.database() as database, database.cursor() as cursor:
    cursor.execute("create table if not exists orders (id uuid primary key, item text not null, done boolean not null default false)")
print("the tables are there")
