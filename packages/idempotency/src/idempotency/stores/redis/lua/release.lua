-- R5. KEYS: the record. ARGV: owner (hex). Replies 1 if this call removed a running record of that owner, else 0.
local value = redis.call('GET', KEYS[1])
local owner = string.match(value or '', '^{"v":1,"state":"running","fingerprint":"%x*","owner":"(%x*)"')
if owner ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
