-- R3. ARGV: owner (hex), the outcome without its opening brace, retention (ms). Replies 1, or 0 if not the owner's.
local record = read()
if not record or record.owner ~= ARGV[1] then
  return 0
end
if record.state == 'completed' then
  -- A repeat: the same end of life, written again so that a WAIT behind it covers the first write.
  redis.call('PEXPIREAT', KEYS[1], whole(redis.call('PEXPIRETIME', KEYS[1])))
  return 1
end
record.state = 'completed'
local separator = string.find(ARGV[2], '^%s*}') and '' or ','
local value = head(record) .. '"completed_at_ms":' .. whole((clock())) .. separator .. ARGV[2]
redis.call('SET', KEYS[1], value, 'PX', ARGV[3])
return 1
