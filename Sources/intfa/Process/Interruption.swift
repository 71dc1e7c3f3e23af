import Synchronization

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// The interrupt signal ends the process with status 130, but never in the middle of a file.
enum Interruption {
  private static let isHeld = Atomic<Bool>(false)
  private static let isPending = Atomic<Bool>(false)

  /// Takes over the signal, also where the parent process left it blocked.
  ///
  /// Call it once, before there are other threads.
  static func install() {
    // Touching them here keeps their initialisation out of the signal handler.
    isHeld.store(false, ordering: .relaxed)
    isPending.store(false, ordering: .relaxed)
    _ = signal(SIGINT) { _ in
      if Interruption.isHeld.load(ordering: .relaxed) {
        Interruption.isPending.store(true, ordering: .relaxed)
      } else {
        _exit(ExitStatus.interrupted.rawValue)
      }
    }
    var signals = sigset_t()
    unsafe sigemptyset(&signals)
    unsafe sigaddset(&signals, SIGINT)
    unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
  }

  /// Runs `body`, which writes a file; an interrupt waits until it is whole.
  static func held<Result>(_ body: () throws -> Result) rethrows -> Result {
    isHeld.store(true, ordering: .relaxed)
    defer {
      isHeld.store(false, ordering: .relaxed)
      if isPending.load(ordering: .relaxed) { _exit(ExitStatus.interrupted.rawValue) }
    }
    return try body()
  }
}
