#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// A file that is written so that a failure never leaves half of it.
enum ReplacedFile {
  /// Writes `parts` one after the other to a file beside `path`, then renames it to `path`.
  ///
  /// A device or a pipe is written to directly, since renaming would remove it. A symbolic link is
  /// replaced.
  ///
  /// - Throws: `.cannotWrite`; the temporary file is gone then.
  static func replace(_ path: String, with parts: [[UInt8]]) throws(TensorFileError) {
    var status = stat()
    let exists = unsafe stat(path, &status) == 0
    let kind = status.st_mode & S_IFMT
    guard !exists || kind == S_IFREG || kind == S_IFDIR else {
      let descriptor = unsafe open(path, O_WRONLY | O_CLOEXEC)
      guard descriptor >= 0 else { throw failure(path) }
      return try fill(descriptor, with: parts, isDurable: false, path: path)
    }
    let folder = path.utf8.lastIndex(of: UInt8(ascii: "/")).map { path[...$0] } ?? ""
    let temporary = "\(folder).\(UInt64.random(in: 0 ... .max)).partial"
    let descriptor = unsafe open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
    guard descriptor >= 0 else { throw failure(path) }
    do throws(TensorFileError) {
      // Without fsync a power failure after the rename could leave an empty file.
      try fill(descriptor, with: parts, isDurable: true, path: path)
      guard unsafe rename(temporary, path) == 0 else { throw failure(path) }
    } catch {
      unsafe unlink(temporary)
      throw error
    }
  }

  /// Writes all parts and closes the descriptor.
  private static func fill(
    _ descriptor: Int32,
    with parts: [[UInt8]],
    isDurable: Bool,
    path: String
  ) throws(TensorFileError) {
    var isOpen = true
    defer { if isOpen { close(descriptor) } }
    for part in parts {
      var done = 0
      while done < part.count {
        let written = unsafe part.withUnsafeBytes { buffer in
          let rest = unsafe UnsafeRawBufferPointer(rebasing: buffer[done...])
          return unsafe write(descriptor, rest.baseAddress, rest.count)
        }
        if written < 0, errno == EINTR { continue }
        guard written > 0 else { throw failure(path) }
        done += written
      }
    }
    guard !isDurable || fsync(descriptor) == 0 else { throw failure(path) }
    isOpen = false
    guard close(descriptor) == 0 else { throw failure(path) }
  }

  private static func failure(_ path: String) -> TensorFileError {
    TensorFileError(.cannotWrite, path: path, "cannot write: \(systemMessage(errno))")
  }
}
