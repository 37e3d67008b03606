-- The record as it stands: {value, ms to live, ms since 1970}, or nothing.
local value = redis.call('GET', KEYS[1])
if not value then
  return false
end
local now = clock()
return {value, redis.call('PTTL', KEYS[1]), now}
