-- R5. KEYS: the record. ARGV: owner (hex), the key beside it for its last fence (or '').
-- Replies 1 if this call removed a running record of that owner, else 0.
local value = redis.call('GET', KEYS[1])
local owner, rest = string.match(
  value or '',
  '^{"v":1,"state":"running","fingerprint":"%x*","owner":"(%x*)"(.*)$'
)
if owner ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
local fence, retention = string.match(rest, '^,"attempt":%d+,"fence":(%d+),.*"retention_ms":(%d+)}$')
if fence and ARGV[2] ~= '' then
  -- R9 also where the clock is set back before the next claim. A server that is full refuses this, and only this.
  redis.pcall('SET', ARGV[2], fence, 'PX', retention)
end
return 1
