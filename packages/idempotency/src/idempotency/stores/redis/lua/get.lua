-- The record as it stands. KEYS: the record. Replies {value, ms to live, ms since 1970}, or nothing.
local value = redis.call('GET', KEYS[1])
if not value then
  return false
end
local time = redis.call('TIME')
return {value, redis.call('PTTL', KEYS[1]), time[1] * 1000 + math.floor(time[2] / 1000)}
