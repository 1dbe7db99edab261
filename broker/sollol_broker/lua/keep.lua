-- keep: take a part of an uploaded file in; with its record, the file is whole. Safe to repeat: parts have numbers.
-- KEYS 1 fabric prefix
-- ARGV 1 file id 2 key part of the app 3 number of the part, '' none 4 the part 5 bytes of the file so far
--      6 its record, '' more parts follow 7 TTL ms: of the file, or of what was not gone on with 8 most bytes of the app's
--      files, with this one 9 most of its files
-- returns {'kept'} | {'full', 'memory' | 'bytes' | 'files'}
-- Not allow-oom: a file is the first that a full Redis can do without.
local function keep(keys, a)
  local F, now, ttl = keys[1], now_ms(), tonumber(a[7])
  if memory_is_full(F, now) then return {'full', 'memory'} end
  local file, list = file_key(F, a[1]), files_key(F, a[2])
  local bytes, count = tonumber(a[5]), 1
  local all = redis.call('HGETALL', list)  -- id = when it runs out (ms), '|', its bytes
  for i = 1, #all, 2 do
    local ends, size = string.match(all[i + 1], '^(%d+)|(%d+)$')
    if tonumber(ends) <= now then
      redis.call('HDEL', list, all[i])
    elseif all[i] ~= a[1] then
      bytes, count = bytes + tonumber(size), count + 1
    end
  end
  if bytes > tonumber(a[8]) then return {'full', 'bytes'} end
  if count > tonumber(a[9]) then return {'full', 'files'} end
  if a[3] ~= '' then redis.call('HSET', file, a[3], a[4]) end
  if a[6] ~= '' then redis.call('HSET', file, 'record', a[6]) end
  redis.call('PEXPIRE', file, ttl)
  redis.call('HSET', list, a[1], string.format('%.0f|%.0f', now + ttl, tonumber(a[5])))
  redis.call('PEXPIRE', list, math.max(ttl, redis.call('PTTL', list)))
  return {'kept'}
end
verb('keep', keep)
