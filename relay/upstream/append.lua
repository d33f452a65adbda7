--[[
Appends one event to its job's stream and publishes it: both or neither.

KEYS[1]  the job's stream: the prefix of durable history, then the job id
ARGV     channel, payload, event, queueName, max_events, ttl_seconds, key

Returns the id of the entry, which is the id of the event. Where an entry of the job bears the same key
already, and the key is not empty, nothing is added or published, and that entry's id is returned. A job
is its id within its queue: two queues may use one id and one key, and share the stream. What is
published is the payload with the id in front of its first field; what is stored is the payload alone.

The payload is never decoded: cjson would turn empty lists into objects and round large integers.
Redis 6.2 or later, or Valkey. XREVRANGE, XADD, EXPIRE, PUBLISH; XDEL where one of the last two is refused.
]]

local stream = KEYS[1]
local channel, payload, event, queue, max_events, ttl_seconds, key = unpack(ARGV)

-- Few at a time: payloads may be large, and a retry finds its entry among the newest.
local ENTRIES_A_READ = 10

local function id_of_same_key()
    local newest = '+'
    while true do
        local entries = redis.call('XREVRANGE', stream, newest, '-', 'COUNT', ENTRIES_A_READ)
        for _, entry in ipairs(entries) do
            local fields = entry[2]
            -- In the order of the XADD below: event, queueName, payload, key.
            if fields[8] == key and fields[4] == queue then
                return entry[1]
            end
        end
        if #entries < ENTRIES_A_READ then
            return nil
        end
        newest = '(' .. entries[#entries][1]
    end
end

local function refuse(advice)
    return redis.error_reply('ERR relay append: ' .. advice)
end

if key == nil then
    return refuse('ARGV takes channel, payload, event, queueName, max_events, ttl_seconds and key, ""'
        .. ' for what is not known')
end
if string.byte(payload) ~= string.byte('{') then
    return refuse('make the payload a JSON object whose first byte is {')
end
-- Redis takes 0 for both, and then keeps nothing.
if (tonumber(max_events) or 0) < 1 or (tonumber(ttl_seconds) or 0) < 1 then
    return refuse('make max_events and ttl_seconds whole numbers from 1')
end
if key ~= '' then
    local id = id_of_same_key()
    if id then
        return id
    end
end

local id = redis.call('XADD', stream, 'MAXLEN', '=', max_events, '*',
    'event', event, 'queueName', queue, 'payload', payload, 'key', key)

local separator = string.find(payload, '^{%s*}') and '' or ','
local message = '{"eventId":"' .. id .. '"' .. separator .. string.sub(payload, 2)

-- A script that fails is not rolled back, and a retry must not take an unpublished entry for a told one.
local function is_fault(reply)
    return type(reply) == 'table' and reply.err ~= nil
end
local reply = redis.pcall('EXPIRE', stream, ttl_seconds)
if not is_fault(reply) then
    reply = redis.pcall('PUBLISH', channel, message)
end
if is_fault(reply) then
    redis.call('XDEL', stream, id)
    return reply
end
return id
