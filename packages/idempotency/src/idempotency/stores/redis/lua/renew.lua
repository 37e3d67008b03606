-- R4. KEYS: the record. ARGV: owner (hex), lease (ms). Replies 1 if the claim still holds the key, else 0.
local value = redis.call('GET', KEYS[1])
local head, owner, lease_end, retention = string.match(
  value or '',
  '^({"v":1,"state":"running","fingerprint":"%x*","owner":"(%x*)","attempt":%d+,"fence":%d+,)'
    .. '"lease_until_ms":(%d+),"retention_ms":(%d+)}$'
)
if owner ~= ARGV[1] then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease_until = math.max(now + ARGV[2], tonumber(lease_end))
redis.call(
  'SET', KEYS[1],
  string.format('%s"lease_until_ms":%.0f,"retention_ms":%s}', head, lease_until, retention),
  'PX', string.format('%.0f', lease_until - now + retention)
)
return 1
