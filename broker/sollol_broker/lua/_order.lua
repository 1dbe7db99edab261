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

-- How far behind its turn a job of this priority stands in line.
local function behind_of(cost, head_start, speed, weights, usual)
  return (head_start - NORMAL_MS + SIZE_WEIGHT * (cost - usual)) * speed / math.max(1, weights)
end

-- returns start, rank
local function tag(now, finish, cost, head_start, speed, weights, usual)
  local start = math.max(now, finish)
  return start, start + behind_of(cost, head_start, speed, weights, usual)
end

local function corrected(now, finishes, level, more)
  local after = {}
  for i, each in ipairs(finishes) do after[i] = i <= level and math.max(now, each + more) or each end
  return after
end

-- A waiting job gets another priority: returns start, rank, its application's finish tags. The numbers are those of fair_order.py.
local function moved(start, rank, level, new_level, is_sooner, now, finishes, share, behind)
  local choose, after = is_sooner and math.min or math.max, finishes
  if level ~= new_level then               -- 1
    after = corrected(now, after, level, -share)
    start = choose(start, math.max(now, after[new_level]))
    after = charged(now, after, new_level, share)
  end
  return start, choose(rank, start + behind), after  -- 2
end
