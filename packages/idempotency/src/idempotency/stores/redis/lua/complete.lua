-- R3. KEYS: the record. ARGV: owner (hex), the outcome without its opening brace, retention (ms).
-- Replies 1, or 0 if the record is not the owner's.
local value = redis.call('GET', KEYS[1])
local state, rest, owner = string.match(
  value or '',
  '^{"v":1,"state":"(%l+)",("fingerprint":"%x*","owner":"(%x*)","attempt":%d+,"fence":%d+,)"'
)
if owner ~= ARGV[1] then
  return 0
end
if state == 'completed' then
  -- A repeat. The same end of life is written again, so that a WAIT behind it covers the first write.
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', redis.call('PEXPIRETIME', KEYS[1])))
  return 1
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local comma = string.find(ARGV[2], '^%s*}') and '' or ','
redis.call(
  'SET', KEYS[1],
  '{"v":1,"state":"completed",' .. rest .. '"completed_at_ms":' .. now .. comma .. ARGV[2],
  'PX', ARGV[3]
)
return 1
