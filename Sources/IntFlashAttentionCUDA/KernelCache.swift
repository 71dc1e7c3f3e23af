#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Compiled kernels on disk, in files that say what they were compiled from.
///
/// An entry is written beside its place and renamed, so that other processes see all of it or nothing;
/// two that compile the same kernel both succeed, and the later one stays. What is damaged, or belongs
/// to something else, is as good as absent. A directory that cannot be written costs time only.
package struct KernelCache: Sendable {
  /// Where the entries are.
  package let directory: String

  package init(directory: String = Self.defaultDirectory) {
    self.directory = directory
  }

  /// `INTFA_CACHE_DIR`, else the system's place for caches.
  package static var defaultDirectory: String {
    func environment(_ name: String) -> String? {
      guard let value = unsafe getenv(name) else { return nil }
      let text = unsafe String(cString: value)
      return text.isEmpty ? nil : text
    }
    if let directory = environment("INTFA_CACHE_DIR") { return directory }
    let name = "int-flash-attention"
    if let directory = environment("XDG_CACHE_HOME") { return "\(directory)/\(name)" }
    let home = environment("HOME") ?? "."
    #if canImport(Darwin)
    return "\(home)/Library/Caches/\(name)"
    #else
    return "\(home)/.cache/\(name)"
    #endif
  }

  /// The code for this key, from disk where it is there, else from `compile`.
  package func code<Failure: Error>(
    for key: String,
    compile: () throws(Failure) -> [UInt8]
  ) throws(Failure) -> [UInt8] {
    let path = path(for: key)
    if let bytes = Self.contents(of: path), let code = Self.decode(bytes, key: key) { return code }
    return try replaceCode(for: key, compile: compile)
  }

  /// Code from `compile`, which takes the place of what is on disk.
  package func replaceCode<Failure: Error>(
    for key: String,
    compile: () throws(Failure) -> [UInt8]
  ) throws(Failure) -> [UInt8] {
    let code = try compile()
    store(Self.encode(code, key: key), at: path(for: key))
    return code
  }

  /// The file of a key: the whole key is inside it, so names need not be without collisions.
  package func path(for key: String) -> String {
    "\(directory)/kernels/\(Self.hexadecimal(Self.checksum(Array(key.utf8)))).bin"
  }

  // MARK: Format

  // "intfa kernel 1\n", length of the key, key, checksum of the code, code; numbers in 8 bytes,
  // the lowest first.
  private static let header = Array("intfa kernel 1\n".utf8)

  private static func encode(_ code: [UInt8], key: String) -> [UInt8] {
    header + bytes(UInt64(key.utf8.count)) + key.utf8 + bytes(checksum(code)) + code
  }

  private static func decode(_ entry: [UInt8], key: String) -> [UInt8]? {
    let begin = header + bytes(UInt64(key.utf8.count)) + key.utf8
    guard entry.starts(with: begin), entry.count > begin.count + 8 else { return nil }
    let code = Array(entry[(begin.count + 8)...])
    guard entry[begin.count..<begin.count + 8].elementsEqual(bytes(checksum(code))) else {
      return nil
    }
    return code
  }

  private static func bytes(_ number: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
  }

  /// FNV-1a, 64 bits: against accidents, not against attackers, who could write the code as well.
  private static func checksum(_ bytes: [UInt8]) -> UInt64 {
    bytes.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
  }

  private static func hexadecimal(_ number: UInt64) -> String {
    let digits = String(number, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }

  // MARK: Files

  private static func contents(of path: String) -> [UInt8]? {
    let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var contents: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = unsafe piece.withUnsafeMutableBytes {
        unsafe read(file, $0.baseAddress, $0.count)
      }
      guard count > 0 else { return count == 0 ? contents : nil }
      contents += piece[..<count]
    }
  }

  private func store(_ entry: [UInt8], at path: String) {
    Self.makeDirectories("\(directory)/kernels")
    let temporary = "\(path).\(getpid()).\(UInt64.random(in: .min ... .max))"
    let file = unsafe open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
    guard file >= 0 else { return }
    var written = 0
    while written < entry.count {
      let count = unsafe entry.withUnsafeBytes {
        unsafe write(file, $0.baseAddress.map { unsafe $0 + written }, $0.count - written)
      }
      guard count > 0 else { break }
      written += count
    }
    close(file)
    guard written == entry.count, unsafe rename(temporary, path) == 0 else {
      unsafe unlink(temporary)
      return
    }
  }

  private static func makeDirectories(_ path: String) {
    var current = path.hasPrefix("/") ? "" : "."
    for part in path.split(separator: "/") {
      current += "/\(part)"
      unsafe mkdir(current, 0o755)
    }
  }
}
