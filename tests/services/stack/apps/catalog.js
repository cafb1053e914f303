// What can be ordered, in MariaDB: GET /items, POST /items/NAME, GET /healthz.
const fs = require("fs");
const http = require("http");
const mysql = require("mysql");

const pool = mysql.createPool({
  host: process.env.MARIADB_HOST,
  port: process.env.MARIADB_PORT,
  database: "catalog",
  user: "shop",
  password: fs.readFileSync("/run/secrets/mariadb_password", "utf8"),
  connectTimeout: 3000,
});
const ask = (...words) =>
  new Promise((done, failed) => pool.query(...words, (error, rows) => (error ? failed(error) : done(rows))));

async function answer(request) {
  if (request.url === "/healthz") return (await ask("SELECT 1 AS well"))[0];
  if (request.method === "POST") {
    await ask("INSERT IGNORE INTO items VALUES (?)", [decodeURIComponent(request.url.split("/")[2])]);
  }
  return (await ask("SELECT name FROM items ORDER BY name")).map((row) => row.name);
}

const server = http.createServer((request, response) => {
  const reply = (status, value) => {
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(JSON.stringify(value) + "\n");
  };
  answer(request).then(
    (value) => reply(200, value),
    (error) => {
      console.error(error.message);
      reply(503, { error: error.message });
    },
  );
});
process.on("SIGTERM", () => process.exit(0));
ask("CREATE TABLE IF NOT EXISTS items (name VARCHAR(100) PRIMARY KEY)").then(
  () => server.listen(8000, () => console.log("listening on port 8000")),
  (error) => {
    console.error(error.message);
    process.exit(1);
  },
);
