#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Text on disk.
enum TextFile {
  static func write(_ text: String, to path: String) throws {
    guard let file = unsafe fopen(path, "w") else {
      throw Stop(description: "cannot write \(path)")
    }
    let bytes = Array(text.utf8)
    let count = unsafe fwrite(bytes, 1, bytes.count, file)
    guard unsafe fclose(file) == 0, count == bytes.count else {
      throw Stop(description: "cannot write \(path)")
    }
  }
}
