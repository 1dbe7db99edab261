-- F:leader, a hash: id, term, since, until and lease (ms) of the present or the last leader.

-- returns id, term, ms left of the lease, at most 0 when there is no leader
local function read_leader(F, now)
  local h = redis.call('HMGET', F .. ':leader', 'id', 'term', 'until', 'lease')
  local left = tonumber(h[3] or 0) - now
  -- Further off than twice its length: the clock has stepped back, and the lease would not end for as long.
  if left > 2 * tonumber(h[4] or 0) then left = 0 end
  return h[1] or '', tonumber(h[2] or 0), left
end

-- Whether the caller leads: a write of anybody else is refused in the function that would make it. The name counts
-- beside the term: a Redis whose clock steps back as it fails over may give a term out again.
local function leads(F, who, term, now)
  if not FENCED then return true end
  local leader, present, left = read_leader(F, now)
  return left > 0 and leader == who and present == tonumber(term)
end
