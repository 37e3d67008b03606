-- R1 and R2 in one step. KEYS: the record. ARGV: fingerprint, owner (hex), lease, retention (ms), takeover ('1' or '0'),
-- the key beside the record where its last fence is kept once it is gone (or '').
-- Replies: {'acquired', attempt, fence}  {'running', fingerprint, ms left}
--          {'completed', value, ms since 1970, ms to live}  {'foreign', value, ms to live}
--
-- Only the head of a value is ever read here: an outcome may say anything. Numbers are written with %.0f, since
-- tostring gives 1.7e+15 for one of their size.
local value = redis.call('GET', KEYS[1])
local time = redis.call('TIME')  -- the server's clock, the only one that judges
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if value and string.find(value, '^{"v":1,"state":"completed","') then
  return {'completed', value, now, redis.call('PTTL', KEYS[1])}
end

local request, attempt, fence = ARGV[1], 1, time[1] * 1000000 + time[2]
local lease_until, retention = now + ARGV[3], ARGV[4]
if value then
  local fingerprint, owner, attempt_before, fence_before, lease_end, kept = string.match(
    value,
    '^{"v":1,"state":"running","fingerprint":"(%x*)","owner":"(%x*)","attempt":(%d+),"fence":(%d+),'
      .. '"lease_until_ms":(%d+),"retention_ms":(%d+)}$'
  )
  -- More digits than a store writes (of milliseconds: 30,000 years) are not a number that can be reckoned with.
  if not fingerprint or #attempt_before > 15 or #fence_before > 18 or #lease_end > 15 or #kept > 15 then
    return {'foreign', value, redis.call('PTTL', KEYS[1])}
  end
  lease_end = tonumber(lease_end)
  if owner == ARGV[2] then
    -- Its first reply was lost. Written even if nothing moves, so that a WAIT behind it covers the claim.
    request, attempt, fence, retention = fingerprint, attempt_before, fence_before, kept
    lease_until = math.max(lease_until, lease_end)
  elseif lease_end > now then
    return {'running', fingerprint, lease_end - now}
  elseif ARGV[5] ~= '1' or fingerprint ~= ARGV[1] then
    return {'running', fingerprint, 0}
  else
    attempt = attempt_before + 1
    fence = math.max(fence, fence_before + 1)  -- R9, also where the clock was set back
  end
end
if not value and ARGV[6] ~= '' then
  -- Not declared as a key: while a cluster moves the slot, a script of two keys is refused unless both are there. An
  -- error is no reason to refuse a claim either: then the clock alone makes the fence rise.
  local last = redis.pcall('GET', ARGV[6])
  if type(last) == 'string' and string.find(last, '^%d+$') then
    fence = math.max(fence, last + 1)  -- R9, also where the clock was set back since
  end
end

-- A running record lives to the end of its lease, and its retention after that (R7).
redis.call(
  'SET', KEYS[1],
  string.format(
    '{"v":1,"state":"running","fingerprint":"%s","owner":"%s","attempt":%.0f,"fence":%.0f,'
      .. '"lease_until_ms":%.0f,"retention_ms":%.0f}',
    request, ARGV[2], attempt, fence, lease_until, retention
  ),
  'PX', string.format('%.0f', lease_until - now + retention)
)
return {'acquired', tonumber(attempt), string.format('%.0f', fence)}
