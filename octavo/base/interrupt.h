// Ctrl-C: long loops poll it, so that temporaries are removed and exit code 130 is returned.
#pragma once

namespace octavo {

void InstallInterruptHandler();  // SIGINT, SIGTERM, SIGHUP; a second signal kills at once
// Throws Error(kInterrupted) if a signal has arrived. Cheap: call it once a sample, once a tensor.
void CheckInterrupt();

}  // namespace octavo
