-- Removes whatever is under a key. KEYS: the record. ARGV: the key beside it for its last fence (or '').
-- Replies 1 if there was something, else 0.
local value = redis.pcall('GET', KEYS[1])  -- an error for what is no string, which is removed too
if not value then
  return 0
end
local fence, retention
if type(value) == 'string' then
  fence = string.match(value, '^{"v":1,"state":"%l+","fingerprint":"%x*","owner":"%x*","attempt":%d+,"fence":(%d+),')
  retention = string.match(value, '^{"v":1,"state":"running",.*"retention_ms":(%d+)}$') or redis.call('PTTL', KEYS[1])
end
redis.call('DEL', KEYS[1])
if fence and ARGV[1] ~= '' and tonumber(retention) > 0 then
  redis.pcall('SET', ARGV[1], fence, 'PX', string.format('%.0f', retention))
end
return 1
