-- R1 and R2 in one step. ARGV: fingerprint, owner (hex), lease, retention (ms), takeover ('1' or '0').
-- Replies: {'acquired', attempt, fence}  {'running', fingerprint, ms left}
--          {'completed', value, ms of age, ms to live}  {'foreign', value, ms to live}
local record, value = read()
local now, micros = clock()
local lease, retention = tonumber(ARGV[3]), tonumber(ARGV[4])

if record == nil then
  record = {
    state = 'running', fingerprint = ARGV[1], owner = ARGV[2], attempt = 1, fence = micros,
    moment = now + lease, retention = retention,
  }
elseif record == false then
  return {'foreign', value, redis.call('PTTL', KEYS[1])}
elseif record.state == 'completed' then
  return {'completed', value, now - record.moment, redis.call('PTTL', KEYS[1])}
elseif record.owner == ARGV[2] then
  -- Its first reply was lost. Written even where nothing moves, so that a WAIT behind it covers the claim.
  record.moment = math.max(record.moment, now + lease)
elseif record.moment > now then
  return {'running', record.fingerprint, record.moment - now}
elseif ARGV[5] ~= '1' or record.fingerprint ~= ARGV[1] then
  return {'running', record.fingerprint, 0}
else
  record.owner = ARGV[2]
  record.attempt = record.attempt + 1
  record.fence = math.max(micros, record.fence + 1)  -- R9, also where the clock was set back
  record.moment = now + lease
  record.retention = retention
end
write_running(record, now)
return {'acquired', record.attempt, whole(record.fence)}
