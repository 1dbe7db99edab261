-- The twin of claim_rule.py's `fits`. Pure: plain tables in, a boolean out.
-- wanted {vram_mib=n, labels={...}, node=name}, each may be missing
-- offer  {vram_mib=n, labels={...}} of the worker; node: its name
local function fits(wanted, offer, node)
  if wanted.vram_mib and wanted.vram_mib > (offer.vram_mib or 0) then return false end
  if wanted.node and wanted.node ~= node then return false end
  for _, label in ipairs(wanted.labels or {}) do
    local found = false
    for _, have in ipairs(offer.labels or {}) do found = found or have == label end
    if not found then return false end
  end
  return true
end
