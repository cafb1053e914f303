# Asks the web server how it is, as long as it runs. bash opens the connection by itself, so that no other client has
# to be in the image.
host=$WEB_HOST port=$WEB_PORT
while :; do
  if exec 3<>"/dev/tcp/$host/$port"; then
    printf 'GET /healthz HTTP/1.0\r\nHost: %s\r\n\r\n' "$host" >&3
    IFS= read -r -t 5 status <&3
    exec 3>&-
    printf 'web at %s:%s says %s\n' "$host" "$port" "${status%$'\r'}"
  fi
  sleep 2
done
