import FoundationEssentials
import IntFlashAttention

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// What the program runs on.
enum Machine {
  /// The processor's name for people.
  static var processorName: String {
    #if canImport(Darwin)
    var size = 0
    guard unsafe sysctlbyname("machdep.cpu.brand_string", nil, &size, nil, 0) == 0 else {
      return "unknown"
    }
    var bytes = [UInt8](repeating: 0, count: size)
    guard unsafe sysctlbyname("machdep.cpu.brand_string", &bytes, &size, nil, 0) == 0 else {
      return "unknown"
    }
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    #else
    guard let text = try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8) else {
      return "unknown"
    }
    // x86 has a "model name" per processor; arm64 only numbers.
    for key in ["model name", "Model", "CPU part"] {
      guard let line = text.split(separator: "\n").first(where: { $0.hasPrefix(key) }),
        let colon = line.firstIndex(of: ":")
      else { continue }
      return String(line[line.index(after: colon)...].drop { $0 == " " })
    }
    return "unknown"
    #endif
  }

  /// The architecture that the program was built for.
  static var architecture: String {
    #if arch(x86_64)
    "x86_64"
    #elseif arch(arm64)
    "arm64"
    #else
    "other"
    #endif
  }

  /// An environment variable; nil where it is not set or empty.
  static func environment(_ name: String) -> String? {
    guard let value = ProcessInfo.processInfo.environment[name], !value.isEmpty else { return nil }
    return value
  }
}
