-- Shared by every script, which follow it in one chunk. KEYS[1] is the one key of a record.
--
-- A record is one JSON object: a head that is written and read here, member for member, and, once completed,
-- the members of the outcome after it. Nothing behind the head is ever parsed.

local HEAD = '^{"v":1,"state":"(%l+)","fingerprint":"(%x*)","owner":"(%x*)","attempt":(%d+),"fence":(%d+),'
local RUNNING = HEAD .. '"lease_until_ms":(%d+),"retention_ms":(%d+)}$'
local COMPLETED = HEAD .. '"completed_at_ms":(%d+)'

-- Numbers are written with %.0f: tostring gives 1.7e+15 for one of this size.
local function whole(number)
  return string.format('%.0f', number)
end

-- Milliseconds and microseconds since 1970 by the server's clock, the only one that judges.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
end

-- The record as a table; nil if there is none; false if it is not one that this version writes.
local function read()
  local value = redis.call('GET', KEYS[1])
  if not value then
    return nil, false
  end
  local state, fingerprint, owner, attempt, fence, moment, retention = string.match(value, RUNNING)
  if state ~= 'running' then
    state, fingerprint, owner, attempt, fence, moment = string.match(value, COMPLETED)
    if state ~= 'completed' then
      return false, value
    end
  end
  return {
    state = state,
    fingerprint = fingerprint,
    owner = owner,
    attempt = tonumber(attempt),
    fence = tonumber(fence),
    moment = tonumber(moment),
    retention = tonumber(retention),
  }, value
end

local function head(record)
  return '{"v":1,"state":"' .. record.state .. '","fingerprint":"' .. record.fingerprint
    .. '","owner":"' .. record.owner .. '","attempt":' .. whole(record.attempt)
    .. ',"fence":' .. whole(record.fence) .. ','
end

-- A running record lives to the end of its lease and its retention after that (R7).
local function write_running(record, now)
  local value = head(record) .. '"lease_until_ms":' .. whole(record.moment)
    .. ',"retention_ms":' .. whole(record.retention) .. '}'
  redis.call('SET', KEYS[1], value, 'PX', whole(record.moment - now + record.retention))
end
