import Foundation
import IntFlashAttentionCUDA
import Testing

@Suite struct KernelCacheTests {
  /// A directory that goes when its owner does.
  private final class Folder {
    let path = FileManager.default.temporaryDirectory
      .appending(path: "intfa-cache-\(UUID().uuidString)").path(percentEncoded: false)
    deinit { try? FileManager.default.removeItem(atPath: path) }

    var files: [String] {
      (try? FileManager.default.contentsOfDirectory(atPath: path + "/kernels")) ?? []
    }
  }
  private struct Compiled: Error {}

  private let code: [UInt8] = (0..<1000).map { UInt8(truncatingIfNeeded: $0 * 7) }

  private func compiles(_ cache: KernelCache, _ key: String) throws -> Bool {
    var didCompile = false
    let found = cache.code(for: key) {
      didCompile = true
      return code
    }
    #expect(found == code)
    return didCompile
  }

  @Test func compilesOnce() throws {
    let folder = Folder()
    let cache = KernelCache(directory: folder.path)
    #expect(try compiles(cache, "a"))
    #expect(try !compiles(cache, "a"))
    #expect(try compiles(cache, "b"))
    #expect(folder.files.count == 2)
    // Another process.
    #expect(try !compiles(KernelCache(directory: folder.path), "a"))
  }

  @Test func aFailedCompilationLeavesNothing() {
    let folder = Folder()
    let cache = KernelCache(directory: folder.path)
    #expect(throws: Compiled.self) {
      try cache.code(for: "a") { () throws(Compiled) in throw Compiled() }
    }
    #expect(folder.files.isEmpty)
  }

  /// Cut short, emptied, with one bit changed in every part, or another key's entry in its place.
  @Test func damagedEntriesAreRebuilt() throws {
    let folder = Folder()
    let cache = KernelCache(directory: folder.path)
    let url = URL(filePath: cache.path(for: "a"))
    _ = try compiles(cache, "a")
    let good = try Data(contentsOf: url)
    var damaged = [Data(), good.dropLast(), good.prefix(10), good + [0]]
    for place in [0, 16, 24, 30, good.count - 1] {
      var changed = good
      changed[place] ^= 1
      damaged.append(changed)
    }
    _ = try compiles(cache, "b")
    damaged.append(try Data(contentsOf: URL(filePath: cache.path(for: "b"))))
    for data in damaged {
      try data.write(to: url)
      #expect(try compiles(cache, "a"))
      #expect(try Data(contentsOf: url) == good)
    }
  }

  /// As many processes would: no reader sees half an entry, and no temporary file stays.
  @Test func writersAtOnceDoNotDisturbEachOther() async throws {
    let folder = Folder()
    let cache = KernelCache(directory: folder.path)
    let code = code
    await withTaskGroup(of: Bool.self) { group in
      for _ in 0..<64 {
        group.addTask { cache.replaceCode(for: "a") { code } == code }
        group.addTask { cache.code(for: "a") { code } == code }
      }
      for await same in group { #expect(same) }
    }
    #expect(folder.files.count == 1)
    #expect(try !compiles(cache, "a"))
  }

  @Test func aDirectoryThatCannotBeWrittenCostsTimeOnly() throws {
    let cache = KernelCache(directory: "/proc/nowhere")
    #expect(try compiles(cache, "a"))
    #expect(try compiles(cache, "a"))
  }
}
