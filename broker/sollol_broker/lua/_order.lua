-- The twin of fair_order.py. Pure. Times in virtual ms.
local SIZE_WEIGHT = 8
local NORMAL_MS = 15000                    -- head start of priority 5

-- Which turns of its application a job waits for: 1 those of all its work, 2 not those of batch work, 3 of urgent work only.
local function level_of(priority)
  if priority >= 7 then return 3 end
  return priority <= 1 and 1 or 2
end

-- finish tags by level, with ms more of work of one level: that delays the level's own next job, and those below.
local function charged(now, finishes, level, more)
  local after = {}
  for i, each in ipairs(finishes) do after[i] = i <= level and math.max(now, each) + more or each end
  return after
end

-- returns start, rank
local function tag(now, finish, cost, head_start, speed, weights, usual)
  local start = math.max(now, finish)
  local behind = (head_start - NORMAL_MS + SIZE_WEIGHT * (cost - usual)) * speed / math.max(1, weights)
  return start, start + behind
end

local function corrected(now, finishes, level, more)
  local after = {}
  for i, each in ipairs(finishes) do after[i] = i <= level and math.max(now, each + more) or each end
  return after
end
