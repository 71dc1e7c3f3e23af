import IntFlashAttention

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// The bytes of a file, read-only: mapped where that pays and can be done, otherwise read.
///
/// A mapped file must not be shortened by anyone while it is open: the system ends a process that
/// touches a page that no longer exists. Replacing the file by renaming is harmless.
@safe
struct FileBytes: ~Copyable, @unchecked Sendable {
  // Sendable although it holds a pointer: nothing writes there before deinit.
  private let start: UnsafeMutableRawPointer
  private let isMapped: Bool
  /// The file, as the caller named it.
  let path: String
  /// Number of bytes.
  let count: Int

  /// Files below this size are read, since a mapping costs more; so is what has no size, as pipes.
  private static let smallestMapping = 16_384
  /// What cannot be mapped must fit in memory.
  private static let longestRead = 1 << 30

  /// Opens a file and takes hold of all of it.
  ///
  /// - Throws: `.cannotOpen`, and `.tooLarge` for more than 1 GiB from a pipe.
  init(path: String) throws(TensorFileError) {
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
      throw TensorFileError(.cannotOpen, path: path, "cannot open: \(systemMessage(errno))")
    }
    defer { close(descriptor) }
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else {
      throw TensorFileError(.cannotOpen, path: path, "cannot examine: \(systemMessage(errno))")
    }
    let mapping = unsafe Self.map(descriptor, status)
    let contents =
      if let mapping = unsafe mapping {
        unsafe (mapping, Int(status.st_size))
      } else {
        unsafe try Self.readAll(descriptor, path: path)
      }
    unsafe (self.start, self.count) = unsafe contents
    unsafe self.isMapped = mapping != nil
    self.path = path
  }

  /// Takes a copy of bytes that come from somewhere else; `name` stands for the path in messages.
  ///
  /// - Throws: `.tooLarge` where there is no memory.
  init(copying bytes: Span<UInt8>, name: String) throws(TensorFileError) {
    guard let memory = unsafe malloc(max(bytes.count, 1)) else {
      throw TensorFileError(.tooLarge, path: name, "no memory for \(bytes.count) bytes")
    }
    unsafe bytes.withUnsafeBytes { source in
      guard let first = source.baseAddress else { return }
      unsafe memory.copyMemory(from: first, byteCount: source.count)
    }
    unsafe self.start = memory
    self.count = bytes.count
    self.isMapped = false
    self.path = name
  }

  deinit {
    if isMapped { unsafe munmap(start, count) } else { unsafe free(start) }
  }

  /// The whole file.
  var bytes: Span<UInt8> {
    @_lifetime(borrow self)
    get {
      let buffer = unsafe UnsafeRawBufferPointer(start: start, count: count)
      let span = unsafe Span<UInt8>(_unsafeBytes: buffer)
      return unsafe _overrideLifetime(span, borrowing: self)
    }
  }

  /// The file in memory, or nil where that cannot be or does not pay.
  private static func map(_ descriptor: Int32, _ status: stat) -> UnsafeMutableRawPointer? {
    guard status.st_mode & S_IFMT == S_IFREG, status.st_size >= smallestMapping else { return nil }
    let size = Int(status.st_size)
    let mapping = unsafe mmap(nil, size, PROT_READ, MAP_PRIVATE, descriptor, 0)
    return unsafe mapping == MAP_FAILED ? nil : mapping
  }

  /// Memory from `malloc` that the caller must free, and the bytes used of it.
  private static func readAll(
    _ descriptor: Int32,
    path: String
  ) throws(TensorFileError) -> (UnsafeMutableRawPointer, Int) {
    var capacity = smallestMapping
    var count = 0
    var memory = unsafe malloc(capacity)
    do throws(TensorFileError) {
      while true {
        guard let target = unsafe memory else {
          throw TensorFileError(.tooLarge, path: path, "no memory for \(capacity) bytes")
        }
        let got = unsafe read(descriptor, target + count, capacity - count)
        if got < 0, errno == EINTR { continue }
        guard got >= 0 else {
          throw TensorFileError(.cannotOpen, path: path, "cannot read: \(systemMessage(errno))")
        }
        if got == 0 { return unsafe (target, count) }
        count += got
        guard count <= longestRead else {
          throw TensorFileError(
            .tooLarge,
            path: path,
            "more than \(longestRead) bytes from a file that cannot be mapped"
          )
        }
        guard count == capacity else { continue }
        capacity *= 2
        guard let larger = unsafe realloc(target, capacity) else {
          throw TensorFileError(.tooLarge, path: path, "no memory for \(capacity) bytes")
        }
        unsafe memory = larger
      }
    } catch {
      unsafe free(memory)
      throw error
    }
  }
}

/// The system's words for an error number.
func systemMessage(_ number: Int32) -> String {
  unsafe String(cString: strerror(number))
}
