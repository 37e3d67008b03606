-- R5. ARGV: owner (hex). Replies 1 if this call removed a running record of that owner, else 0.
local record = read()
if not record or record.state ~= 'running' or record.owner ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
