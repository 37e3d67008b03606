-- R4. ARGV: owner (hex), lease (ms). Replies 1 if the claim still holds the key, else 0.
local record = read()
if not record or record.state ~= 'running' or record.owner ~= ARGV[1] then
  return 0
end
local now = clock()
record.moment = math.max(record.moment, now + tonumber(ARGV[2]))
write_running(record, now)
return 1
