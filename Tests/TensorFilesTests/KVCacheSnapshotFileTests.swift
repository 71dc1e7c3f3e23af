import AttentionTestSupport
import IntFlashAttention
import TensorFiles
import Testing

@Suite struct KVCacheSnapshotFileTests {
  private let folder: TemporaryFolder
  private static let precisions: [Precision] = [.int8, .int4, .int4KeyValue, .bfloat16, .float32]

  init() throws {
    folder = try TemporaryFolder()
  }

  @Test(arguments: precisions, [0, 40, 64, 300])
  func filesGiveTheSameBits(_ precision: Precision, _ count: Int) throws {
    let sequence = try CachedInputs(length: 330, headDimension: 40, valueDimension: 24)
    let cache = try sequence.cache(precision)
    try sequence.append(0..<count, to: cache)
    cache.firstPosition = 12
    try cache.snapshot().write(to: folder.path())
    let read = try KVCacheSnapshot(path: folder.path())
    #expect(read.precision == precision)
    #expect(read.count == count)
    #expect(read.firstPosition == 12)
    let restored = try KVCache(in: try sequence.cache(precision).pool, restoring: read)
    try restored.snapshot().write(to: folder.path("again"))
    let isSameFile = try folder.bytes("again") == folder.bytes()
    #expect(isSameFile)
    try sequence.append(count..<330, to: cache)
    try sequence.append(count..<330, to: restored)
    let isSame = try sequence.attend(0..<330, restored) == sequence.attend(0..<330, cache)
    #expect(isSame)
  }

  private func saved() throws -> [UInt8] {
    let sequence = try CachedInputs(length: 70, headDimension: 8, valueDimension: 8)
    let cache = try sequence.cache(.int4)
    try sequence.append(0..<70, to: cache)
    try cache.snapshot().write(to: folder.path())
    return try folder.bytes()
  }

  private func code(_ bytes: [UInt8]) throws -> TensorFileError.Code? {
    let path = try folder.file(bytes, "damaged")
    return failureCode { () throws(TensorFileError) in _ = try KVCacheSnapshot(path: path) }
  }

  @Test func shortenedFilesAreRefused() throws {
    let bytes = try saved()
    for length in stride(from: 0, to: bytes.count, by: 97) {
      #expect(try code(Array(bytes.prefix(length))) != nil, "\(length) bytes")
    }
  }

  @Test func otherTextIsRefused() throws {
    let text = String(decoding: try saved(), as: UTF8.self)
    let header = try #require(text.firstIndex(of: "{"))
    #expect(text[header...].hasPrefix("{\"__metadata__\""))
    for (old, new) in [
      ("\"version\":\"1\"", "\"version\":\"2\""),
      ("\"precision\":\"int4\"", "\"precision\":\"int8\""),
      ("\"precision\":\"int4\"", "\"precision\":\"int5\""), ("KVCache\"", "KVcache\""),
      ("\"count\":\"70\"", "\"count\":\"71\""), ("\"count\":\"70\"", "\"count\":\"7x\""),
      ("\"headDimension\":\"8\"", "\"headDimension\":\"9\""),
      ("\"keyValueHeadCount\":\"2\"", "\"keyValueHeadCount\":\"0\""),
      ("\"firstPosition\"", "\"firstposition\""), ("\"key.scale\"", "\"key.scald\""),
    ] {
      let bytes = try saved()
      let place = try #require(Self.place(of: Array(old.utf8), in: bytes), "\(old)")
      var changed = bytes
      changed.replaceSubrange(place..<place + old.utf8.count, with: new.utf8)
      #expect(try code(changed) == .malformed, "\(new)")
    }
  }

  private static func place(of part: [UInt8], in bytes: [UInt8]) -> Int? {
    bytes.indices.first { bytes[$0...].starts(with: part) }
  }

  /// Any byte of the data may change: the file is refused, or what it gives can be attended to.
  @Test func changedBytesDoNoHarm() throws {
    let sequence = try CachedInputs(length: 70, headDimension: 8, valueDimension: 8)
    let bytes = try saved()
    var random = TestRandom(seed: 3)
    for _ in 0..<150 {
      var changed = bytes
      let place = Int(random.next() % UInt64(bytes.count))
      changed[place] ^= 1 << UInt8(random.next() % 8)
      let path = try folder.file(changed, "damaged")
      do throws(TensorFileError) {
        let snapshot = try KVCacheSnapshot(path: path)
        guard
          let restored = try? KVCache(in: try sequence.cache(.int4).pool, restoring: snapshot)
        else { continue }
        _ = try? sequence.attend(0..<restored.count, restored)
      } catch {
        #expect(!error.message.isEmpty)
      }
    }
  }

  @Test func missingFilesAreReported() {
    let path = folder.path("none")
    let code = failureCode { () throws(TensorFileError) in _ = try KVCacheSnapshot(path: path) }
    #expect(code == .cannotOpen)
  }
}
