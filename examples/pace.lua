-- Lets wrk wait between requests, so that it does not use up the host: milliseconds, for each
-- connection.
function delay()
   return 10
end
